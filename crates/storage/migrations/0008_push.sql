-- Whom events notify, one row per event however many members its room has.

-- Small numbers for users who are named in push_events.others.
CREATE TABLE push_users (
    user_nid BIGINT NOT NULL PRIMARY KEY,
    user_id TEXT NOT NULL UNIQUE
);

-- An event and its result for every joined member of this server but its sender, those in `others` and those with a row
-- in push_personal.
CREATE TABLE push_events (
    room_nid BIGINT NOT NULL,
    position BIGINT NOT NULL,
    -- The root of its thread; empty for the main timeline.
    thread_id TEXT NOT NULL,
    sender TEXT NOT NULL,
    notify BOOLEAN NOT NULL,
    highlight BOOLEAN NOT NULL,
    actions TEXT NOT NULL,
    -- Members with another result: see `push::Others`.
    others {BLOB} NOT NULL,
    ts BIGINT NOT NULL,
    PRIMARY KEY (room_nid, position)
)
-- only sqlite
WITHOUT ROWID
-- end
;
CREATE UNIQUE INDEX push_events_by_position ON push_events (position);

-- The few for whom an event has a result of their own: highlights and invites.
CREATE TABLE push_personal (
    user_id TEXT NOT NULL,
    position BIGINT NOT NULL,
    room_nid BIGINT NOT NULL,
    thread_id TEXT NOT NULL,
    notify BOOLEAN NOT NULL,
    highlight BOOLEAN NOT NULL,
    actions TEXT NOT NULL,
    ts BIGINT NOT NULL,
    PRIMARY KEY (user_id, position)
)
-- only sqlite
WITHOUT ROWID
-- end
;
CREATE INDEX push_personal_in_room ON push_personal (room_nid, position);

-- Up to where members have read: thread '*' for everything and made when they join, the others for what was read of one
-- thread beyond that. What was unread in events that were collected since is in the folded columns.
CREATE TABLE push_reads (
    room_nid BIGINT NOT NULL,
    user_id TEXT NOT NULL,
    thread_id TEXT NOT NULL,
    -- The join: nothing before it notifies.
    joined_position BIGINT NOT NULL,
    read_position BIGINT NOT NULL,
    folded_position BIGINT NOT NULL DEFAULT 0,
    folded_notify BIGINT NOT NULL DEFAULT 0,
    folded_highlight BIGINT NOT NULL DEFAULT 0,
    PRIMARY KEY (room_nid, user_id, thread_id)
)
-- only sqlite
WITHOUT ROWID
-- end
;

INSERT INTO push_reads (room_nid, user_id, thread_id, joined_position, read_position)
    SELECT room_nid, user_id, '*', 0, 0 FROM memberships WHERE membership = 'join';
INSERT INTO push_reads (room_nid, user_id, thread_id, joined_position, read_position)
    SELECT m.room_nid, m.user_id, c.thread_id, 0, c.read_position
    FROM unread_counts c JOIN rooms r ON r.room_id = c.room_id
    JOIN memberships m ON m.room_nid = r.room_nid AND m.user_id = c.user_id AND m.membership = 'join'
    WHERE c.read_position > 0;
-- What was unread stays so; what was read is listed no more.
INSERT INTO push_personal (user_id, position, room_nid, thread_id, notify, highlight, actions, ts)
    SELECT p.user_id, p.position, r.room_nid, p.thread_id, p.notify, p.highlight, p.actions, p.ts
    FROM push_actions p JOIN rooms r ON r.room_id = p.room_id
    JOIN unread_counts c ON c.room_id = p.room_id AND c.user_id = p.user_id AND c.thread_id = p.thread_id
    WHERE p.position > c.read_position;
DROP TABLE push_actions;
DROP TABLE unread_counts;
