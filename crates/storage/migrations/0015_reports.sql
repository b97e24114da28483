-- What users reported. The number is a position of the stream.

CREATE TABLE reports (
    number BIGINT PRIMARY KEY,
    reporter TEXT NOT NULL,
    room_id TEXT,
    event_id TEXT,
    user_id TEXT,
    reason TEXT NOT NULL,
    score BIGINT,
    reported_at BIGINT NOT NULL
);
