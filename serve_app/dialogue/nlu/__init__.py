"""Understanding of a turn: its language, sentiment, emotion, intent and entities, on one core, offline."""
