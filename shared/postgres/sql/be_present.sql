-- be_present
-- Take the advisory lock by which others see that this worker is there: it lasts as long as the
-- connection does, and the server lets go of it when the worker's end of it is gone.
--
--   $1  presence  bigint   drawn at random, and told to nobody before
SELECT pg_advisory_lock($1::bigint)
