"""The training engine: one engine, three presets (teacher, student, fine-tune)."""
