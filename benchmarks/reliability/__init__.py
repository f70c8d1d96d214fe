"""What users, full disks and hostile files do to this program: attacks that count what went wrong."""
