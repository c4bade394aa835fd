"""What a run folder shows beside its records: tables, figures and a page, always remade from them."""

from sembench.report.derived import write_derived

__all__ = ["write_derived"]
