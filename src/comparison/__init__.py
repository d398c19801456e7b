"""From run folders to what they say: results are read, effects estimated, findings worded, report and figure made."""
