-- The stream position at which a delayed event was scheduled: what was written before does not cancel it.
ALTER TABLE delayed_events ADD COLUMN scheduled_position BIGINT NOT NULL DEFAULT 0;

-- Users whose TURN credentials are refused if they expire at `until` or earlier, Unix seconds.
CREATE TABLE relay_revocations (
    user_id TEXT NOT NULL PRIMARY KEY,
    until BIGINT NOT NULL
);
