-- purge_receipts
-- Delete some of the oldest receipts.
--
--   $1  since   timestamptz   where the last part ended: what is deleted is not walked over again
--   $2  before  timestamptz   only older ones
--   $3  most    integer
--
-- Returns   (recorded_at) of each that was deleted.
DELETE FROM command_receipts
 WHERE command_id = ANY (ARRAY (
           SELECT command_id
             FROM command_receipts
            WHERE recorded_at >= $1::timestamptz
              AND recorded_at < $2::timestamptz
            ORDER BY recorded_at
            LIMIT $3::integer))
RETURNING recorded_at
