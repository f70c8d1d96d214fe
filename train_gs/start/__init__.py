"""What the splats start from: the canonical cloud merged to the budget, cleared views, a shell far away, frames the alignment left out.

May import: what `train_gs` may.
Start: `initialize.initial_splats`; `clear_views` drops points that stand before cameras, `shell` adds what lies beyond all depth.
"""
