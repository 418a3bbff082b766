"""What `efat plan` shows: what strategies cost, and the plan in a few sentences."""

from __future__ import annotations

from rich.console import Console

from efat.cli.render import results_table
from efat.confidence import at_least, bound_text
from efat.planning.plan import Plan, StrategyCost
from efat.planning.planner import Planned


def show_plan(planned: Planned, console: Console) -> None:
    """Print a plan.

    Args:
        planned: the plan, and what is to be said about it.
        console: where to.
    """
    plan = planned.plan
    table = results_table(
        f"{plan.lot.chips} chips, {plan.required / plan.images:.2%} of {plan.images} tuning images required; "
        f"severity: {plan.predictor}, statistic: {plan.statistic}",
        left=["strategy"],
        right=["retrainings", "iterations", "largest", "chips out\nof reach", "of fixed"],
    )
    fixed = next((cost.iterations for cost in plan.comparison if cost.strategy == "fixed"), 0)
    for cost in plan.comparison:
        chosen = (cost.strategy, cost.aligned) == (plan.strategy, plan.aligned)
        table.add_row(
            name_of(cost) + (" *" if chosen else ""),
            f"{cost.retrained_groups:,}",
            f"{cost.iterations:,}",
            f"{cost.largest_amount:,}",
            f"{cost.out_of_reach:,}",
            f"{cost.iterations / fixed:.1%}" if fixed else "",
            style="bold" if chosen else None,
        )
    console.print(table)
    console.print(_summary(plan), style="bold")
    for note in planned.notes:
        console.print(f"Note: {note}.")


def name_of(cost: StrategyCost) -> str:
    """A strategy as it is shown."""
    return f"{cost.strategy}, aligned" if cost.aligned else cost.strategy


def _summary(plan: Plan) -> str:
    cost = plan.cost
    alone = sum(len(group.chips) for group in plan.groups if group.amount == 0)
    how = f"as tried on {plan.images:,} tuning images" if plan.tried else "as predicted"
    text = f"{alone} of {plan.lot.chips} chips need no retraining, {how}"
    if cost.retrained_groups:
        text += (
            f"; the others share {cost.retrained_groups} retraining{'s' * (cost.retrained_groups > 1)} of "
            f"{cost.iterations:,} iterations in total"
        )
    sure = bound_text(at_least(plan.required, plan.images))
    return (
        f"{text}. A chip that just meets what is required gets at least {sure} right with 95 % confidence; the verdict "
        f"is on other images. The resilience analysis took {plan.resilience_iterations + plan.harden_iterations:,} "
        "iterations."
    )
