"""The pod of the chart: prepares a node, feeds it credentials, says how it is (docs/agent.md)."""
