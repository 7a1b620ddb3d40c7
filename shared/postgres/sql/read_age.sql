-- read_age
-- How old what is read here may be: the workers at the primary give signs of life all the time, and
-- a standby has all that was written there before the newest sign that it knows of.
--
--   $1  seconds  double precision   how long a sign of life is valid
--
-- Returns   one number of seconds; null where no worker has given any.
SELECT extract(epoch FROM clock_timestamp() - max(alive_until))::double precision
       + $1::double precision
  FROM workers
