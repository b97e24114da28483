-- What was uploaded. The bytes lie in files named by their hash; a row is one mxc:// address.

CREATE TABLE media (
    media_id TEXT NOT NULL PRIMARY KEY,
    user_id TEXT NOT NULL,
    created_at BIGINT NOT NULL,
    -- NULL until the content of a reserved address has arrived.
    content_hash TEXT,
    size_bytes BIGINT NOT NULL DEFAULT 0,
    content_type TEXT,
    filename TEXT
);
CREATE INDEX media_by_user ON media (user_id, created_at);
CREATE INDEX media_by_content ON media (content_hash);
