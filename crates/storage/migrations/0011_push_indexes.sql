-- What of a room's threads is unread, past a main timeline that is read; and what is too old to be kept one by one.
CREATE INDEX push_events_in_threads ON push_events (room_nid, position) WHERE thread_id <> '';
CREATE INDEX push_events_by_age ON push_events (ts, room_nid);
CREATE INDEX push_personal_by_age ON push_personal (ts, room_nid);
