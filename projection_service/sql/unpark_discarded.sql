-- unpark_discarded
-- Give up again, in the shadow, what an operator gave up in the read model.
--
-- Returns   (patient_id) of each event that was parked.
DELETE FROM consent_shadow.parked_events parked
 USING public.discarded_events discarded
 WHERE parked.partition = discarded.partition AND parked.position = discarded.position
RETURNING parked.patient_id
