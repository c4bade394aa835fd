"""Static pages that need nothing but themselves: one style, one script, and the parts that all pages share."""
