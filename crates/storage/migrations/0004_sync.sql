-- What users keep for themselves: global data has an empty room. Push rules are the type m.push_rules.
CREATE TABLE account_data (
    user_id TEXT NOT NULL,
    room_id TEXT NOT NULL,
    type TEXT NOT NULL,
    content TEXT NOT NULL,
    position BIGINT NOT NULL,
    PRIMARY KEY (user_id, room_id, type)
)
-- only sqlite
WITHOUT ROWID
-- end
;
CREATE INDEX account_data_changes ON account_data (user_id, position);
-- The two types the server itself acts on are read for all users at the start.
CREATE INDEX account_data_push_rules ON account_data (user_id) WHERE type = 'm.push_rules';
CREATE INDEX account_data_ignored ON account_data (user_id) WHERE type = 'm.ignored_user_list';

CREATE TABLE filters (
    user_id TEXT NOT NULL,
    filter_id TEXT NOT NULL,
    definition TEXT NOT NULL,
    PRIMARY KEY (user_id, filter_id)
)
-- only sqlite
WITHOUT ROWID
-- end
;

-- An unthreaded receipt has an empty thread.
CREATE TABLE receipts (
    room_id TEXT NOT NULL,
    user_id TEXT NOT NULL,
    type TEXT NOT NULL,
    thread_id TEXT NOT NULL,
    event_id TEXT NOT NULL,
    event_position BIGINT NOT NULL,
    ts BIGINT NOT NULL,
    position BIGINT NOT NULL,
    PRIMARY KEY (room_id, user_id, type, thread_id)
)
-- only sqlite
WITHOUT ROWID
-- end
;
CREATE INDEX receipts_changes ON receipts (room_id, position);

-- One row for each event and each user it notified. The main timeline has an empty thread.
CREATE TABLE push_actions (
    user_id TEXT NOT NULL,
    room_id TEXT NOT NULL,
    position BIGINT NOT NULL,
    event_id TEXT NOT NULL,
    thread_id TEXT NOT NULL,
    notify BOOLEAN NOT NULL,
    highlight BOOLEAN NOT NULL,
    actions TEXT NOT NULL,
    ts BIGINT NOT NULL,
    PRIMARY KEY (user_id, room_id, position)
)
-- only sqlite
WITHOUT ROWID
-- end
;

-- Counts of push_actions above read_position, kept as they change.
CREATE TABLE unread_counts (
    room_id TEXT NOT NULL,
    user_id TEXT NOT NULL,
    thread_id TEXT NOT NULL,
    notify BIGINT NOT NULL,
    highlight BIGINT NOT NULL,
    read_position BIGINT NOT NULL,
    position BIGINT NOT NULL,
    PRIMARY KEY (room_id, user_id, thread_id)
)
-- only sqlite
WITHOUT ROWID
-- end
;
CREATE INDEX unread_counts_by_user ON unread_counts (user_id);
