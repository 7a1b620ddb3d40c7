-- list_parked
-- The patients who have parked events, those that wait longest first.
--
-- Returns   (patient_id, partition, events, first_position, reason, parked_at): the first one's
--           reason and time.
SELECT patient_id, partition, count(*) AS events, min(position) AS first_position,
       (array_agg(reason ORDER BY position))[1] AS reason, min(parked_at) AS parked_at
  FROM parked_events
 GROUP BY patient_id, partition
 ORDER BY min(parked_at), patient_id
