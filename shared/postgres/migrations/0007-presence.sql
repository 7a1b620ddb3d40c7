-- By what a worker's death is noticed; null for a worker of before, which has nothing to notice
-- depends: 0001-partitions

-- migrate: apply

ALTER TABLE workers ADD COLUMN presence bigint;

-- migrate: rollback

ALTER TABLE workers DROP COLUMN presence;
