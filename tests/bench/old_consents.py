"""Makes a read model that is large already, by SQL: a million consents in half a minute."""

import asyncpg

DOCTORS = 100
"""Each of them may see as many patients."""

PATIENTS = """
INSERT INTO patients (patient_id, version) SELECT 'old-' || n, 1 FROM generate_series(1, $1) AS n
"""
CONSENTS = """
INSERT INTO patient_consent (patient_id, entity_name, entity_id, permissions, requested)
SELECT 'old-' || n, 'doctor', 'doctor-' || n % $2, ARRAY['exams'], ARRAY[]::text[]
  FROM generate_series(1, $1) AS n
"""
HISTORY = """
INSERT INTO consent_history (patient_id, entity_name, entity_id, record_type, kind, began_version,
                             began_at, began_command, began_event)
SELECT 'old-' || n, 'doctor', 'doctor-' || n % $2, 'exams', 'period', 1,
       now(), gen_random_uuid(), gen_random_uuid()
  FROM generate_series(1, $1) AS n
"""


async def make_consents(url: str, consents: int) -> None:
    """Let as many patients have granted one consent each, in turns to a hundred doctors."""
    connection = await asyncpg.connect(url, ssl=False)
    try:
        await connection.execute(PATIENTS, consents)
        await connection.execute(CONSENTS, consents, DOCTORS)
        await connection.execute(HISTORY, consents, DOCTORS)
        await connection.execute("ANALYZE patients, patient_consent, consent_history")
        await connection.execute("CHECKPOINT")
    finally:
        await connection.close()
