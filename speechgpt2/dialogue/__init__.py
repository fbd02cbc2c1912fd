"""Who may speak when: voice activity, turn taking, interruption. It talks to an engine through `protocol`."""
