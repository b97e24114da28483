-- The highest stream position that may have been given out: positions start above it after a restart.
CREATE TABLE stream_ceiling (
    only_row BIGINT PRIMARY KEY CHECK (only_row = 1),
    position BIGINT NOT NULL
);
INSERT INTO stream_ceiling (only_row, position) VALUES (1, 0);

-- Small values the server makes for itself and keeps: the signing key, media secrets.
CREATE TABLE server_values (
    name TEXT PRIMARY KEY,
    value {BLOB} NOT NULL
);
