-- read_trouble
-- Why nothing new comes in, and whether the log was set back.
SELECT reason, set_back FROM trouble
