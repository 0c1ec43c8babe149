"""What you run: the command line, the batch engine, the mock endpoint, and the wiring of the actors on Ray."""
