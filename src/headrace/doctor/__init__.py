"""Is this machine right? What it computes, against what it should: `examine` checks the machine, `cases` references."""
