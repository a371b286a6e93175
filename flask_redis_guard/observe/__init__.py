"""What is known of Redis: background check, story of an outage, report, diagnosis."""
