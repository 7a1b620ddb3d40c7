"""The time line of a patient's consents: laid out, and drawn as text or as a picture."""
