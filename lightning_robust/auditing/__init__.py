"""A report on a trained classifier: whom it fails, what it memorised, what it relies on."""

from __future__ import annotations

from lightning_robust.auditing.measuring import Audit, AuditedSplit, GroupReport, audit

__all__ = ["Audit", "AuditedSplit", "GroupReport", "audit"]
