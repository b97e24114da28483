-- Accounts of this server, what proves who they are, and what they say about themselves.

CREATE TABLE users (
    user_id TEXT NOT NULL PRIMARY KEY,
    -- NULL: no password opens this account.
    password_hash TEXT,
    is_admin BOOLEAN NOT NULL DEFAULT FALSE,
    created_at BIGINT NOT NULL,
    deactivated_at BIGINT
);

-- Only the SHA-256 of a token is kept: a copy of the database opens no session.
CREATE TABLE access_tokens (
    token_hash {BLOB} NOT NULL PRIMARY KEY,
    user_id TEXT NOT NULL,
    device_id TEXT NOT NULL,
    created_at BIGINT NOT NULL
);
CREATE INDEX access_tokens_by_device ON access_tokens (user_id, device_id);

CREATE TABLE registration_tokens (
    token TEXT NOT NULL PRIMARY KEY,
    -- NULL: any number of times.
    uses_allowed BIGINT,
    uses BIGINT NOT NULL DEFAULT 0,
    -- NULL: never.
    expires_at BIGINT,
    created_at BIGINT NOT NULL
);

-- At most one row: the link that makes the first administrator.
CREATE TABLE first_admin_link (
    only_row BIGINT NOT NULL PRIMARY KEY,
    token_hash {BLOB} NOT NULL,
    created_at BIGINT NOT NULL
);

CREATE TABLE profile_fields (
    user_id TEXT NOT NULL,
    field TEXT NOT NULL,
    -- JSON text.
    value TEXT NOT NULL,
    PRIMARY KEY (user_id, field)
);
