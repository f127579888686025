"""The pieces dashboards are made of: variables, and three kinds of panel that all look alike."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import count
from typing import Final, NamedTuple

from grafana_foundation_sdk.builders import common, dashboard, prometheus, stat, table, timeseries
from grafana_foundation_sdk.models.common import (
    BigValueColorMode,
    BigValueGraphMode,
    GraphDrawStyle,
    LegendDisplayMode,
    LegendPlacement,
    SortOrder,
    StackingMode,
    TooltipDisplayMode,
    VisibilityMode,
)
from grafana_foundation_sdk.models.dashboard import (
    DashboardCursorSync,
    DashboardLinkType,
    DataSourceRef,
    DataTransformerConfig,
    DynamicConfigValue,
    Threshold,
    ThresholdsMode,
    VariableOption,
    VariableRefresh,
    VariableSort,
)
from grafana_foundation_sdk.models.prometheus import PromQueryFormat

_SOURCE: Final = DataSourceRef(type_val="prometheus", uid="$datasource")
_NODES: Final = "${datasource:queryparam}&${cluster:queryparam}&${node:queryparam}&${__url_time_range}"


Panel = timeseries.Panel | stat.Panel | table.Panel


class Query(NamedTuple):
    """PromQL, and what a line of it is called."""

    expression: str
    legend: str


class Column(NamedTuple):
    """One figure a row of a table, and its unit."""

    title: str
    expression: str
    unit: str = "short"


def detail(title: str, uid: str, *variables: tuple[str, str]) -> dashboard.DashboardLink:
    """Return a link to another dashboard for the same nodes and time; `variables` pairs a variable with a label of the series."""
    chosen = "".join(f"&var-{variable}=${{__field.labels.{label}:percentencode}}" for variable, label in variables)
    return dashboard.DashboardLink(title).url(f"/d/{uid}?{_NODES}{chosen}")


def row_detail(title: str, uid: str, variable: str, field: str) -> dashboard.DashboardLink:
    """Return such a link for a table: the variable's value is the row's field of that name."""
    return dashboard.DashboardLink(title).url(f"/d/{uid}?{_NODES}&var-{variable}=${{__data.fields.{field}:percentencode}}")


def graph(
    title: str,
    unit: str,
    description: str,
    *queries: Query,
    width: int = 12,
    stacked: bool = False,
    bars: bool = False,
    most: float | None = None,
    links: Sequence[dashboard.DashboardLink] = (),
) -> timeseries.Panel:
    """Return lines over time; `bars` for what happens rather than lasts, `most` the end of the scale."""
    panel = (
        timeseries.Panel()
        .title(title)
        .description(description)
        .datasource(_SOURCE)
        .unit(unit)
        .min(0)
        .span(width)
        .height(8)
        .line_width(1)
        .fill_opacity(70 if bars else 25 if stacked else 0)
        .show_points(VisibilityMode.NEVER)
        .draw_style(GraphDrawStyle.BARS if bars else GraphDrawStyle.LINE)
        .tooltip(common.VizTooltipOptions().mode(TooltipDisplayMode.MULTI).sort(SortOrder.DESCENDING))
        .legend(
            common.VizLegendOptions()
            .display_mode(LegendDisplayMode.TABLE)
            .placement(LegendPlacement.BOTTOM)
            .show_legend(True)
            .calcs(["lastNotNull", "max"])
            .sort_by("Last *")
            .sort_desc(True)
        )
    )
    if stacked or bars:
        panel.stacking(common.StackingConfig().mode(StackingMode.NORMAL).group("A"))
    if most is not None:
        panel.max(most)
    if links:
        panel.data_links(list(links))
    for number, query in enumerate(queries):
        panel.with_target(_target(number, query.expression).legend_format(query.legend).range())
    return panel


def figure(
    title: str,
    unit: str,
    description: str,
    expression: str,
    *,
    warn: float | None = None,
    bad: float | None = None,
    width: int = 4,
    links: Sequence[dashboard.DashboardLink] = (),
) -> stat.Panel:
    """Return one number, which is yellow from `warn` and red from `bad`."""
    steps = [Threshold(value=None, color="green")]
    steps += [Threshold(value=value, color=color) for value, color in ((warn, "yellow"), (bad, "red")) if value is not None]
    panel = (
        stat.Panel()
        .title(title)
        .description(description)
        .datasource(_SOURCE)
        .unit(unit)
        .span(width)
        .height(4)
        .graph_mode(BigValueGraphMode.AREA)
        .color_mode(BigValueColorMode.VALUE)
        .reduce_options(common.ReduceDataOptions().calcs(["lastNotNull"]).fields("").values(False))
        .thresholds(dashboard.ThresholdsConfig().mode(ThresholdsMode.ABSOLUTE).steps(steps))
        .with_target(_target(0, expression).legend_format(title).range())
    )
    return panel.data_links(list(links)) if links else panel


def listing(
    title: str,
    description: str,
    *columns: Column,
    labels: Sequence[str],
    links: tuple[str, Sequence[dashboard.DashboardLink]] | None = None,
    width: int = 24,
) -> table.Panel:
    """Return a table: a row for each value of `labels`, then the columns; `links` go from the field that it names."""
    panel = table.Panel().title(title).description(description).datasource(_SOURCE).unit("short").span(width).height(9)
    one = len(columns) == 1
    names = {"Value" if one else f"Value #{_letter(number)}": column.title for number, column in enumerate(columns)}
    order = {name: place for place, name in enumerate((*labels, *names))}
    for number, column in enumerate(columns):
        panel.with_target(_target(number, column.expression).format(PromQueryFormat.TABLE).instant())
        panel.override_by_name(column.title, [DynamicConfigValue("unit", column.unit)])
    if not one:
        panel.with_transformation(DataTransformerConfig("merge", options={}))
    hidden = {name: True for name in ("Time", "__name__", "job") if name not in labels}
    organized = {"indexByName": order, "excludeByName": hidden, "renameByName": names}
    panel.with_transformation(DataTransformerConfig("organize", options=organized))
    panel.sort_by([common.TableSortByFieldState().display_name(columns[0].title).desc(True)])
    if links:
        urls = [{"title": link.build().title, "url": link.build().url} for link in links[1]]
        panel.override_by_name(links[0], [DynamicConfigValue("links", urls)])
    return panel


def _letter(number: int) -> str:
    return "ABCDEFGHIJ"[number]


def _target(number: int, expression: str) -> prometheus.Dataquery:
    return prometheus.Dataquery().expr(expression).ref_id(_letter(number)).datasource(_SOURCE)


def choice(
    name: str, label: str, query: str, *, all_value: str = "", multi: bool = True, first: str = ""
) -> dashboard.QueryVariable:
    """Return a variable whose values Prometheus knows; `all_value` is what "All" means, without one there is no "All".

    With `multi` Grafana writes a value as a regular expression, quoted, as `=~` and a path's dots need it.
    """
    variable = (
        dashboard.QueryVariable(name)
        .label(label)
        .datasource(_SOURCE)
        .query(query)
        .refresh(VariableRefresh.ON_TIME_RANGE_CHANGED)
        .sort(VariableSort.ALPHABETICAL_ASC)
        .multi(multi)
    )
    if all_value:
        variable.include_all(True).all_value(all_value)
        variable.current(VariableOption(selected=True, text=["All"], value=["$__all"]))
    elif first:
        variable.current(VariableOption(selected=True, text=first, value=first))
    return variable


def board(name: str, title: str, description: str, *variables: dashboard.QueryVariable) -> dashboard.Dashboard:
    """Return an empty dashboard with the variables that all have, and these; its uid is `nsagent-` and the name."""
    built = (
        dashboard.Dashboard(f"nsagent / {title}")
        .uid(f"nsagent-{name}")
        .description(description)
        .tags(["nsagent"])
        .readonly()
        .time("now-1h", "now")
        .refresh("30s")
        .timezone("browser")
        .tooltip(DashboardCursorSync.CROSSHAIR)
        .link(
            dashboard.DashboardLink("nsagent")
            .type(DashboardLinkType.DASHBOARDS)
            .tags(["nsagent"])
            .as_dropdown(True)
            .include_vars(True)
            .keep_time(True)
        )
        .with_variable(dashboard.DatasourceVariable("datasource").label("Data source").type("prometheus"))
        .with_variable(choice("cluster", "Cluster", "label_values(nsagent_build_info, cluster)", all_value=".*"))
        .with_variable(choice("node", "Node", 'label_values(nsagent_build_info{cluster=~"$cluster"}, instance)', all_value=".+"))
    )
    for variable in variables:
        built.with_variable(variable)
    return built


def fill(built: dashboard.Dashboard, *rows: tuple[str, Sequence[Panel]]) -> dashboard.Dashboard:
    """Add rows of panels to a dashboard, from left to right and down, and number them: a panel's address stays what it is."""
    number = count(1)
    for title, panels in rows:
        built.with_row(dashboard.Row(title).id(next(number)))
        for panel in panels:
            built.with_panel(panel.id(next(number)))
    return built
