-- accept_log
-- Begin a new generation of the whole log behind where it ends now, and have every worker begin
-- anew with it. Numbers grow with the time, so that a log that was restored never hands one out a
-- second time.
--
-- Returns   (partition, position, event_id, generation) per partition, in their order: its last
--           event; null where it has none.
WITH locked AS (
    SELECT partition, position
      FROM partitions
     ORDER BY partition
       FOR UPDATE
), following AS (
    SELECT greatest(coalesce(max(generation), 1) + 1,
                    floor(extract(epoch FROM clock_timestamp()))::bigint) AS generation
      FROM generations
), fenced AS (
    UPDATE partitions p
       SET epoch = p.epoch + 1
      FROM locked
     WHERE p.partition = locked.partition
), begun AS (
    INSERT INTO generations (partition, generation, after_position)
    SELECT locked.partition, following.generation, locked.position FROM locked, following
)
SELECT locked.partition, locked.position, last.event_id, following.generation
  FROM following, locked
  LEFT JOIN events last
    ON last.partition = locked.partition
   AND last.position = locked.position
 ORDER BY locked.partition
