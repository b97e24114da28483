-- Rooms, their events and their state. Integer keys keep the bytes per event small:
-- an event's key is its stream position, a room's key the position of its first event here,
-- a state group's key the position of the event that made it.

CREATE TABLE rooms (
    room_nid BIGINT PRIMARY KEY,
    room_id TEXT NOT NULL UNIQUE,
    version TEXT NOT NULL,
    -- JSON list of event_nid: the events no other event names as its predecessor.
    extremities TEXT NOT NULL,
    -- The state after the extremities.
    state_group BIGINT NOT NULL,
    -- The position of the newest event.
    latest BIGINT NOT NULL,
    -- Whether the room stands in the public room directory.
    listed BOOLEAN NOT NULL
);
CREATE INDEX rooms_listed ON rooms (room_nid) WHERE listed;

CREATE TABLE events (
    event_nid BIGINT PRIMARY KEY,
    room_nid BIGINT NOT NULL,
    event_id TEXT NOT NULL UNIQUE,
    depth BIGINT NOT NULL,
    type TEXT NOT NULL,
    sender TEXT NOT NULL,
    state_key TEXT,
    -- The state event this one took the place of.
    replaces BIGINT,
    -- The state after this event.
    state_group BIGINT NOT NULL,
    -- Refused by the current state: kept, but never shown and no predecessor of our events.
    soft_failed BOOLEAN NOT NULL,
    -- The redaction that pruned `json`.
    redacted_by BIGINT,
    -- The device and transaction id of a local sender.
    device_id TEXT,
    txn_id TEXT,
    -- The event in canonical JSON, pruned once it is redacted.
    json TEXT NOT NULL
);
CREATE INDEX events_in_room ON events (room_nid, event_nid);
CREATE INDEX events_state_history ON events (room_nid, type, state_key, event_nid) WHERE state_key IS NOT NULL;
CREATE UNIQUE INDEX events_transaction ON events (sender, device_id, txn_id, room_nid, type) WHERE txn_id IS NOT NULL;

-- A state group is the difference to its parent. The parent of the n-th group of a line is the
-- group n & (n - 1), so that a chain has at most log2(n) links and an entry is copied log2(n) times.
CREATE TABLE state_groups (
    state_group BIGINT PRIMARY KEY,
    room_nid BIGINT NOT NULL,
    generation BIGINT NOT NULL,
    parent BIGINT
);
CREATE INDEX state_groups_of_room ON state_groups (room_nid);

CREATE TABLE state_entries (
    state_group BIGINT NOT NULL,
    event_nid BIGINT NOT NULL,
    PRIMARY KEY (state_group, event_nid)
-- only sqlite
) WITHOUT ROWID;
-- end
-- only postgres
);
-- end

-- Who is what in which room: the current m.room.member events as columns.
CREATE TABLE memberships (
    room_nid BIGINT NOT NULL,
    user_id TEXT NOT NULL,
    membership TEXT NOT NULL,
    event_nid BIGINT NOT NULL,
    forgotten BOOLEAN NOT NULL,
    PRIMARY KEY (room_nid, user_id)
);
CREATE INDEX memberships_of_user ON memberships (user_id);

CREATE TABLE room_aliases (
    alias TEXT PRIMARY KEY,
    room_nid BIGINT NOT NULL,
    creator TEXT NOT NULL
);
CREATE INDEX room_aliases_of_room ON room_aliases (room_nid);

-- m.relates_to of events, by the event they relate to.
CREATE TABLE event_relations (
    target TEXT NOT NULL,
    event_nid BIGINT NOT NULL,
    rel_type TEXT NOT NULL,
    PRIMARY KEY (target, event_nid)
);
