// What our dashboard is, in Grafana's own types. The test appends `export const dashboard: Ours = <the JSON>;` and compiles.
//
// Grafana's Dashboard leaves a panel's `options` and `custom` open, so a misspelt word in them would pass in silence. Here
// every kind of panel has the types of its own options; a kind that is not listed is an error as well.

import type { AnnotationQuery, Dashboard, FieldConfig, GridPos, Panel, RowPanel } from "@grafana/schema";
import type * as stat from "@grafana/schema/dist/esm/raw/composable/stat/panelcfg/x/StatPanelCfg_types.gen.js";
import type * as table from "@grafana/schema/dist/esm/raw/composable/table/panelcfg/x/TablePanelCfg_types.gen.js";
import type * as timeseries from "@grafana/schema/dist/esm/raw/composable/timeseries/panelcfg/x/TimeSeriesPanelCfg_types.gen.js";

// Types as JSON spells them: "thresholds" instead of FieldColorModeId.Thresholds.
type Written<T> = T extends string ? `${T}` : T extends object ? { [K in keyof T]: Written<T[K]> } : T;

// Grafana publishes no type for a query to Prometheus; these are the words we use.
type Query = { refId: string; expr: string; legendFormat: string; instant?: true; format?: "table" };

type Chart<Kind extends string, Options, Custom> = Omit<Panel, "type" | "gridPos" | "targets" | "options" | "fieldConfig"> & {
  type: Kind;
  gridPos: GridPos;
  targets: Query[];
  options: Options;
  fieldConfig: {
    defaults: Omit<FieldConfig, "custom"> & { custom?: Custom };
    overrides: NonNullable<Panel["fieldConfig"]>["overrides"];
  };
};

type Charts =
  | Chart<"timeseries", timeseries.Options, timeseries.FieldConfig>
  | Chart<"stat", stat.Options, never>
  | Chart<"table", table.Options, table.FieldConfig>;

type Row = Omit<RowPanel, "panels"> & { gridPos: GridPos; panels: Charts[] };

type Annotation = Omit<AnnotationQuery, "target"> & {
  target: { refId: string; expr: string; interval: string };
  titleFormat: string;
};

export type Ours = Written<
  Omit<Dashboard, "panels" | "annotations"> & { panels: (Charts | Row)[]; annotations: { list: Annotation[] } }
>;
