-- A room's threads are listed by their newest reply: relations are looked up by room too.

ALTER TABLE event_relations ADD COLUMN room_nid BIGINT NOT NULL DEFAULT 0;
UPDATE event_relations
SET room_nid = (SELECT e.room_nid FROM events e WHERE e.event_nid = event_relations.event_nid)
WHERE EXISTS (SELECT 1 FROM events e WHERE e.event_nid = event_relations.event_nid);
CREATE INDEX event_relations_threads ON event_relations (room_nid, target, event_nid) WHERE rel_type = 'm.thread';
