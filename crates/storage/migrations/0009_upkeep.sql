-- Reserved media addresses by age, to find those that lapsed.
CREATE INDEX media_reserved ON media (created_at) WHERE content_hash IS NULL;
