"""Pages for people: one HTML file with charts as inline SVG; no script, no network.

Knows nothing of what it shows: performance reports (`perf/`) and reports of
data patches (`patches/`) draw with it.
"""
