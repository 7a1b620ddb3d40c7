"""Takes commands, decides them against the patient's state, appends events, publishes them."""
