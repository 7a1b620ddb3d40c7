-- unpark_discarded
-- Give up again, in the shadow, what an operator gave up in the read model; not what came to stand
-- at the same position when the log was restored to an older state.
--
-- Returns   (patient_id) of each event that was parked.
DELETE FROM consent_shadow.parked_events parked
 USING public.discarded_events discarded
 WHERE parked.partition = discarded.partition AND parked.position = discarded.position
   AND coalesce(discarded.event_id = parked.event->>'id', true)
RETURNING parked.patient_id
