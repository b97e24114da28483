-- Rooms whose events fork: what their state resolves to, and what was refused.

-- The room's state once this event had its place, where that is not the state after the event itself: the state after
-- the room's other extremities counts too.
ALTER TABLE events ADD COLUMN room_group BIGINT;
-- Refused where it stands. Such an event has soft_failed set as well: neither is ever shown.
ALTER TABLE events ADD COLUMN rejected BOOLEAN NOT NULL DEFAULT FALSE;

-- auth_events of state events: the graph that state resolution walks.
CREATE TABLE event_auth (
    event_nid BIGINT NOT NULL,
    auth_nid BIGINT NOT NULL,
    PRIMARY KEY (event_nid, auth_nid)
-- only sqlite
) WITHOUT ROWID;
INSERT INTO event_auth (event_nid, auth_nid)
SELECT DISTINCT e.event_nid, a.event_nid
FROM events e JOIN json_each(e.json, '$.auth_events') named JOIN events a ON a.event_id = named.value
WHERE e.state_key IS NOT NULL;
-- end
-- only postgres
);
-- Canonical JSON begins with this field; the rest of the text may hold what jsonb cannot.
INSERT INTO event_auth (event_nid, auth_nid)
SELECT DISTINCT e.event_nid, a.event_nid
FROM events e
CROSS JOIN LATERAL jsonb_array_elements_text(substring(e.json from '"auth_events":(\[[^]]*\])')::jsonb) named (id)
JOIN events a ON a.event_id = named.id
WHERE e.state_key IS NOT NULL;
-- end

-- What state resolution made of a piece of a room's current state at a position, where the event at that position does
-- not say so itself. No event: the piece is gone.
CREATE TABLE state_resets (
    room_nid BIGINT NOT NULL,
    position BIGINT NOT NULL,
    type TEXT NOT NULL,
    state_key TEXT NOT NULL,
    event_nid BIGINT,
    PRIMARY KEY (room_nid, position, type, state_key)
-- only sqlite
) WITHOUT ROWID;
-- end
-- only postgres
);
-- end

-- Redactions that came before the event they redact.
CREATE TABLE waiting_redactions (
    target TEXT NOT NULL,
    event_nid BIGINT NOT NULL,
    PRIMARY KEY (target, event_nid)
-- only sqlite
) WITHOUT ROWID;
-- end
-- only postgres
);
-- end

-- The position at which a membership began; that of its event, unless state resolution brought the event back.
ALTER TABLE memberships ADD COLUMN position BIGINT NOT NULL DEFAULT 0;
UPDATE memberships SET position = event_nid;
