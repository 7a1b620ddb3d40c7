-- create_trouble
-- Why nothing new comes in, where that is so: one row.
CREATE TABLE trouble (
    reason   TEXT,
    set_back INTEGER NOT NULL   -- 1: the log is not the one that the file was made from
)
