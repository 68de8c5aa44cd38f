"""Sound in and out: files, streams, and what a recording may be."""
SAMPLE_RATE = 16000  # Hz; all sound inside is mono, at this rate
