"""An example of every message. Together they tell one story, and a test plays it for real."""

from typing import Any, Final

_ASKED: Final = "1f0e0d0c-0b0a-4908-8706-050403020101"
_ASKED_EVENT: Final = "1f0e0d0c-0b0a-4908-8706-050403020102"
_GRANTED: Final = "2f0e0d0c-0b0a-4908-8706-050403020101"
_GRANTED_EVENT: Final = "2f0e0d0c-0b0a-4908-8706-050403020102"
_REVOKED: Final = "3f0e0d0c-0b0a-4908-8706-050403020101"
_REVOKED_EVENT: Final = "3f0e0d0c-0b0a-4908-8706-050403020102"
_AGAIN: Final = "4f0e0d0c-0b0a-4908-8706-050403020101"
_END: Final = "2026-12-31T23:00:00.000000Z"

_OF_EVERY_EVENT: Final = {
    "specversion": "1.0",
    "source": "consent/command-service",
    "subject": "p-1",
    "datacontenttype": "application/json",
    "schemaversion": 1,
    "partition": 7,
}

_CONSENT_ASKED: Final = {
    **_OF_EVERY_EVENT,
    "id": _ASKED_EVENT,
    "type": "ConsentAsked",
    "time": "2026-11-23T08:00:00.123456Z",
    "position": 41,
    "streamversion": 1,
    "correlationid": _ASKED,
    "causationid": _ASKED,
    "data": {
        "patient_id": "p-1",
        "by_entity": "doctor",
        "by_id": "d-1",
        "target": "exams",
        "expires_at": _END,
    },
}
_CONSENT_GRANTED: Final = {
    **_OF_EVERY_EVENT,
    "id": _GRANTED_EVENT,
    "type": "ConsentGranted",
    "time": "2026-11-23T08:05:00.000000Z",
    "position": 42,
    "streamversion": 2,
    "correlationid": _GRANTED,
    "causationid": _GRANTED,
    "schemaversion": 2,
    "data": {
        "patient_id": "p-1",
        "to_entity": "doctor",
        "to_id": "d-1",
        "target": "exams",
        "expires_at": _END,
    },
}
_CONSENT_REVOKED: Final = {
    **_OF_EVERY_EVENT,
    "id": _REVOKED_EVENT,
    "type": "ConsentRevoked",
    "time": "2026-11-24T17:30:00.000000Z",
    "position": 43,
    "streamversion": 3,
    "correlationid": _REVOKED,
    "causationid": _REVOKED,
    "data": {"patient_id": "p-1", "from_entity": "doctor", "from_id": "d-1", "target": "exams"},
}

_CONSENT_EXPIRED: Final = {
    **_OF_EVERY_EVENT,
    "id": "5f0e0d0c-0b0a-4908-8706-050403020102",
    "type": "ConsentExpired",
    "time": "2026-11-24T18:00:00.412000Z",
    "position": 45,
    "streamversion": 5,
    "correlationid": "5f0e0d0c-0b0a-4908-8706-050403020101",
    "causationid": "5f0e0d0c-0b0a-4908-8706-050403020101",
    "data": {
        "patient_id": "p-1",
        "to_entity": "nurse",
        "to_id": "n-7",
        "target": "exams",
        "expires_at": "2026-11-24T18:00:00.000000Z",
    },
}
_CONSENT_DENIED: Final = {
    **_OF_EVERY_EVENT,
    "id": "6f0e0d0c-0b0a-4908-8706-050403020102",
    "type": "ConsentDenied",
    "time": "2026-11-24T18:30:00.000000Z",
    "position": 47,
    "streamversion": 7,
    "correlationid": "6f0e0d0c-0b0a-4908-8706-050403020101",
    "causationid": "6f0e0d0c-0b0a-4908-8706-050403020101",
    "data": {"patient_id": "p-1", "to_entity": "nurse", "to_id": "n-8", "target": "exams"},
}
_REQUEST_WITHDRAWN: Final = {
    **_OF_EVERY_EVENT,
    "id": "7f0e0d0c-0b0a-4908-8706-050403020102",
    "type": "RequestWithdrawn",
    "time": "2026-11-24T18:40:00.000000Z",
    "position": 49,
    "streamversion": 9,
    "correlationid": "7f0e0d0c-0b0a-4908-8706-050403020101",
    "causationid": "7f0e0d0c-0b0a-4908-8706-050403020101",
    "data": {"patient_id": "p-1", "by_entity": "nurse", "by_id": "n-9", "target": "exams"},
}

_ASK: Final = {"at": "2026-11-23T08:00:00.123456Z", "version": 1, "command_id": _ASKED}
_GRANT: Final = {"at": "2026-11-23T08:05:00.000000Z", "version": 2, "command_id": _GRANTED}

EXAMPLES: Final[dict[str, dict[str, Any]]] = {
    "AskConsent": {
        "patient_id": "p-1",
        "by_entity": "doctor",
        "by_id": "d-1",
        "target": "exams",
        "expires_at": _END,
    },
    "GrantConsent": {
        "patient_id": "p-1",
        "to_entity": "doctor",
        "to_id": "d-1",
        "target": "exams",
        "expires_at": _END,
    },
    "RevokeConsent": {
        "patient_id": "p-1", "from_entity": "doctor", "from_id": "d-1", "target": "exams",
    },
    "DenyConsent": {"patient_id": "p-1", "to_entity": "nurse", "to_id": "n-8", "target": "exams"},
    "WithdrawRequest": {
        "patient_id": "p-1", "by_entity": "nurse", "by_id": "n-9", "target": "exams",
    },
    "CommandAccepted": {
        "status": "accepted",
        "command_id": _GRANTED,
        "patient_id": "p-1",
        "partition": 7,
        "version": 2,
        "events": [
            {
                "id": _GRANTED_EVENT,
                "type": "ConsentGranted",
                "target": "exams",
                "version": 2,
                "position": 42,
            }
        ],
    },
    "CommandRejected": {
        "status": "rejected",
        "command_id": _AGAIN,
        "patient_id": "p-1",
        "error": "consent_already_granted",
        "message": "doctor d-1 already has consent to exams",
        "details": [{"field": "expires_at", "message": f"exams is granted until {_END}"}],
    },
    "ConsentAsked": _CONSENT_ASKED,
    "ConsentGranted": _CONSENT_GRANTED,
    "ConsentRevoked": _CONSENT_REVOKED,
    "ConsentExpired": _CONSENT_EXPIRED,
    "ConsentDenied": _CONSENT_DENIED,
    "RequestWithdrawn": _REQUEST_WITHDRAWN,
    "ListConsents": {"patient_id": "p-1", "min_version": 2},
    "ListConsentsAnswer": {
        "status": "ok",
        "patient_id": "p-1",
        "version": 2,
        "consents": [
            {
                "entity_name": "doctor",
                "entity_id": "d-1",
                "permissions": ["exams"],
                "requested": [],
                "until": {"exams": _END},
            }
        ],
    },
    "HasConsent": {
        "patient_id": "p-1",
        "entity_name": "doctor",
        "entity_id": "d-1",
        "permission": "exams",
        "min_version": 2,
    },
    "HasConsentAnswer": {
        "status": "ok", "has_consent": True, "version": 2, "valid_until": _END,
    },
    "CheckConsents": {
        "questions": [
            {
                "patient_id": "p-1",
                "actors": [
                    {"entity_name": "doctor", "entity_id": "d-1"},
                    {"entity_name": "patient", "entity_id": "p-9"},
                ],
                "permission": "exams",
                "min_version": 2,
            },
            {"patient_id": "p-1", "actors": [{"entity_name": "nurse", "entity_id": "n-7"}]},
        ],
    },
    "CheckConsentsAnswer": {
        "status": "ok",
        "answers": [
            {
                "status": "ok",
                "has_consent": True,
                "version": 2,
                "granted": ["exams"],
                "missing": [],
                "basis": [
                    {
                        "record_type": "exams",
                        "entity_name": "doctor",
                        "entity_id": "d-1",
                        "event_id": _GRANTED_EVENT,
                        "command_id": _GRANTED,
                        "since": "2026-11-23T08:05:00.000000Z",
                        "until": _END,
                    }
                ],
                "valid_until": _END,
            },
            {
                "status": "ok",
                "has_consent": False,
                "version": 2,
                "granted": [],
                "missing": ["exams", "consultations", "conditions", "er_visits"],
                "basis": [],
            },
        ],
    },
    "ListPatients": {
        "entity_name": "doctor", "entity_id": "d-1", "permission": "exams", "limit": 500,
    },
    "ListPatientsAnswer": {
        "status": "ok",
        "patients": [{"patient_id": "p-1", "permissions": ["exams"], "until": {"exams": _END}}],
    },
    "ConsentHistory": {"patient_id": "p-1", "min_version": 2, "limit": 500},
    "ConsentHistoryAnswer": {
        "status": "ok",
        "patient_id": "p-1",
        "version": 2,
        "periods": [
            {
                "entity_name": "doctor",
                "entity_id": "d-1",
                "record_type": "exams",
                "granted": _GRANT,
                "until": _END,
            }
        ],
        "requests": [
            {
                "entity_name": "doctor",
                "entity_id": "d-1",
                "record_type": "exams",
                "asked": _ASK,
                "until": _END,
                "answered": {"how": "granted", **_GRANT},
            }
        ],
        "complete": True,
    },
    "ReadEvents": {"partition": 7, "after_position": 0, "limit": 100, "patient_id": "p-1"},
    "ReadEventsAnswer": {
        "status": "ok",
        "events": [_CONSENT_ASKED, _CONSENT_GRANTED],
        "head": 42,
        "log": "0d9d5a0e-5f0c-4c7e-9d1d-0f1f7a1c9b53",
    },
    "QueryFailed": {
        "status": "error",
        "error": "validation_error",
        "message": "the query is not valid: patient_id",
        "details": [{"field": "patient_id", "message": "is required"}],
    },
}  # fmt: skip
