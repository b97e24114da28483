-- What users say of themselves; who is there is not kept.

CREATE TABLE presence_statuses (
    user_id TEXT NOT NULL PRIMARY KEY,
    status TEXT NOT NULL
);
