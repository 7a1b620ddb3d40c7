-- create_partitions
-- How far each partition's log is taken, and when nothing more was in it.
CREATE TABLE partitions (
    number          INTEGER PRIMARY KEY,
    position        INTEGER NOT NULL DEFAULT 0,
    event_id        TEXT,    -- of the event at that position: another one there is another log
    generation      INTEGER NOT NULL DEFAULT 1,  -- of the log, of that event
    complete_boot   TEXT,    -- in which run of this host, and when by both of its clocks,
    complete_clock  REAL,    -- all that the log had was known
    complete_wall   REAL
)
