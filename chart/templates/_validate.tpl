{{/*
What values.schema.json cannot judge: values that depend on each other or on the cluster. lookup answers only when helm talks to a cluster,
so `helm template` and `helm lint` are never refused for what a cluster contains.
*/}}
{{- define "apparate.validate" -}}
{{- $credentials := include "apparate.credentials" . -}}
{{- $image := include "apparate.image" . -}}
{{- include "apparate.validateNames" . -}}
{{- if not .Values.removeFrom -}}
{{- include "apparate.validateMonitors" . -}}
{{- end -}}
{{- include "apparate.validateCluster" (dict "root" . "image" $image) -}}
{{- end -}}

{{- define "apparate.validateNames" -}}
{{- range .Values.followNamespaces -}}
{{- if eq . "*" -}}
{{- fail "followNamespaces: * would let every labelled node read every Secret of the cluster; name each namespace" -}}
{{- end -}}
{{- end -}}
{{- if ne (get .Values.nodeSelector "cloud.tencent.com/apparate" | default "true") "true" -}}
{{- fail "nodeSelector: cloud.tencent.com/apparate is always \"true\"; leave it out" -}}
{{- end -}}
{{- range concat (.Values.imagePullSecrets | default list) (.Values.global.imagePullSecrets | default list) -}}
{{- if and (kindIs "map" .) (not .name) -}}
{{- fail "imagePullSecrets: an entry has no name; give the name of a Secret in the release's namespace" -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{- define "apparate.validateMonitors" -}}
{{- if and .Values.podMonitor.enabled .Values.serviceMonitor.enabled -}}
{{- fail "podMonitor.enabled and serviceMonitor.enabled would read every metric twice; enable one of them" -}}
{{- end -}}
{{- range list "podMonitor" "serviceMonitor" "prometheusRule" -}}
{{- if and (get $.Values .).enabled (not ($.Capabilities.APIVersions.Has "monitoring.coreos.com/v1")) -}}
{{- fail (printf "%s.enabled needs the Prometheus operator, whose API monitoring.coreos.com/v1 is not here; install it first, or set %s.enabled=false (helm template: --api-versions monitoring.coreos.com/v1)" . .) -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{- define "apparate.validateCluster" -}}
{{- $root := .root -}}
{{- if and (contains "registry.example.com" .image) (lookup "v1" "Node" "" "").items -}}
{{- fail (printf "image is %s, which stands for yours; push the image that `make package` builds to a registry of yours and name it: --set image=HOST/REPOSITORY:%s" .image $root.Chart.AppVersion) -}}
{{- end -}}
{{- $other := lookup "rbac.authorization.k8s.io/v1" "ClusterRole" "" (include "apparate.clusterName" $root) -}}
{{- if $other -}}
{{- $owner := $other.metadata.annotations | default dict -}}
{{- $name := get $owner "meta.helm.sh/release-name" -}}
{{- $namespace := get $owner "meta.helm.sh/release-namespace" -}}
{{- if and $root.Values.removeFrom (or (ne $name $root.Release.Name) (ne $namespace $root.Release.Namespace)) -}}
{{- fail (printf "removeFrom: apparate is still installed and would come back; first: helm uninstall %s -n %s" $name $namespace) -}}
{{- else if or (ne $name $root.Release.Name) (ne $namespace $root.Release.Namespace) -}}
{{- fail (printf "this cluster has apparate already, as release %s in namespace %s, and one release serves all labelled nodes; change that one (helm upgrade %s -n %s) or remove it first (helm uninstall %s -n %s)" $name $namespace $name $namespace $name $namespace) -}}
{{- else if $root.Values.removeFrom -}}
{{- fail (printf "removeFrom: the agent of this release would bring apparate back; first: helm uninstall %s -n %s, then install again with removeFrom" $name $namespace) -}}
{{- end -}}
{{- end -}}
{{- $here := lookup "v1" "Namespace" "" $root.Release.Namespace -}}
{{- $level := get (dig "metadata" "labels" dict ($here | default dict)) "pod-security.kubernetes.io/enforce" | default "privileged" -}}
{{- if ne $level "privileged" -}}
{{- fail (printf "namespace %s admits only pods of level %s, but preparing a node needs a privileged one: kubectl label --overwrite namespace %s pod-security.kubernetes.io/enforce=privileged" $root.Release.Namespace $level $root.Release.Namespace) -}}
{{- end -}}
{{- end -}}
