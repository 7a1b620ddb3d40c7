-- By which event each period of consent began
-- depends: 0009-consents-that-end

-- migrate: apply

-- Null for what was projected before, until a rebuild.
ALTER TABLE consent_history ADD COLUMN began_event uuid;

-- migrate: rollback

ALTER TABLE consent_history DROP COLUMN began_event;
