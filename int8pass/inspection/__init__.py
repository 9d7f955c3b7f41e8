"""What the pass did, for people: graph text, dumps and reports."""
