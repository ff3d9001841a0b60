"""After fit: export, calibrate, score, walk back, recover and time the model that ships."""
