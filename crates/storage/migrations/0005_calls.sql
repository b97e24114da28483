-- Delayed events (MSC4140): scheduled until `outcome` is set, then kept for a while so that a
-- client that asks again hears what became of them.
CREATE TABLE delayed_events (
    delay_id TEXT PRIMARY KEY,
    user_id TEXT NOT NULL,
    device_id TEXT NOT NULL,
    room_id TEXT NOT NULL,
    event_type TEXT NOT NULL,
    state_key TEXT,
    content TEXT NOT NULL,
    delay_ms BIGINT NOT NULL,
    -- When the delay began to run: at scheduling, or at the last restart.
    running_since BIGINT NOT NULL,
    -- The request that scheduled it, so that a repeated request answers the same delay_id.
    transaction_key TEXT UNIQUE,
    -- The SFU participant whose presence keeps the event from being sent, when its leave is delegated.
    delegated_room TEXT,
    delegated_identity TEXT,
    -- NULL while scheduled; then 'send' or 'cancel', why, and what came of it.
    outcome TEXT,
    reason TEXT,
    event_id TEXT,
    error TEXT,
    finalised_at BIGINT
);
CREATE INDEX delayed_events_scheduled ON delayed_events (user_id) WHERE outcome IS NULL;
CREATE INDEX delayed_events_finalised ON delayed_events (finalised_at) WHERE outcome IS NOT NULL;
CREATE INDEX delayed_events_delegated ON delayed_events (delegated_room, delegated_identity) WHERE outcome IS NULL;

-- Whom the SFU was told to let in: what makes an SFU participant a Matrix device again.
CREATE TABLE sfu_grants (
    sfu_room TEXT NOT NULL,
    identity TEXT NOT NULL,
    room_id TEXT NOT NULL,
    user_id TEXT NOT NULL,
    device_id TEXT NOT NULL,
    expires_at BIGINT NOT NULL,
    PRIMARY KEY (sfu_room, identity)
);
CREATE INDEX sfu_grants_expiry ON sfu_grants (expires_at);
CREATE INDEX sfu_grants_user ON sfu_grants (user_id);
