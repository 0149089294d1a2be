{{/* Name of the chart's objects in the release's namespace; short enough for every suffix that is put behind it. */}}
{{- define "apparate.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 46 | trimSuffix "-" -}}
{{- else if contains .Chart.Name .Release.Name -}}
{{- .Release.Name | trunc 46 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name .Chart.Name | trunc 46 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{/* Name of what exists once in a cluster. It does not depend on the release, so that a second release meets the first. */}}
{{- define "apparate.clusterName" -}}
apparate-agent
{{- end -}}

{{/* What tells the agent's pods from others; a DaemonSet's selector can never change, so nothing else belongs here. */}}
{{- define "apparate.selector" -}}
app.kubernetes.io/name: {{ .Chart.Name }}
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/component: agent
{{- end -}}

{{- define "apparate.labels" -}}
app.kubernetes.io/name: {{ .Chart.Name }}
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{- end -}}

{{- define "apparate.nodeSelector" -}}
cloud.tencent.com/apparate: "true"
{{- with omit .Values.nodeSelector "cloud.tencent.com/apparate" }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{/* Kubernetes 1.16 refuses the two system classes outside kube-system. */}}
{{- define "apparate.priorityClassName" -}}
{{- $refused := and (semverCompare "<1.17-0" .Capabilities.KubeVersion.Version) (ne .Release.Namespace "kube-system") -}}
{{- if not (and $refused (hasPrefix "system-" .Values.priorityClassName)) -}}
{{- .Values.priorityClassName -}}
{{- end -}}
{{- end -}}

{{/* Names of all pull Secrets in the release's namespace, as a JSON list. */}}
{{- define "apparate.pullSecretNames" -}}
{{- $names := list -}}
{{- if include "apparate.credentials" . | fromJsonArray -}}
{{- $names = append $names (include "apparate.pullSecretName" .) -}}
{{- end -}}
{{- range concat (.Values.imagePullSecrets | default list) (.Values.global.imagePullSecrets | default list) -}}
{{- $names = append $names (kindIs "map" . | ternary (get (kindIs "map" . | ternary . dict) "name") .) -}}
{{- end -}}
{{- $names | uniq | toJson -}}
{{- end -}}

{{- define "apparate.pullSecretName" -}}
{{ include "apparate.fullname" . }}-pull
{{- end -}}

{{- define "apparate.imagePullSecrets" -}}
{{- with include "apparate.pullSecretNames" . | fromJsonArray -}}
imagePullSecrets:
{{- range . }}
  - name: {{ . | quote }}
{{- end }}
{{- end }}
{{- end -}}

{{/* Rights of a container that works on the host's files and sockets as root, and may do nothing else. Needs root and capabilities. */}}
{{- define "apparate.unprivileged" -}}
runAsUser: 0
runAsGroup: 0
privileged: false
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities:
  drop: [ALL]
  {{- with .capabilities }}
  add: {{ toJson . }}
  {{- end }}
{{- if semverCompare ">=1.19-0" .root.Capabilities.KubeVersion.Version }}
seccompProfile:
  type: RuntimeDefault
{{- end }}
{{- with .root.Values.seLinuxType }}
seLinuxOptions:
  type: {{ . }}
{{- end }}
{{- end -}}

{{/* The environment that docs/agent.md fixes; both containers get the same. */}}
{{- define "apparate.environment" -}}
- name: APPARATE_DAEMONSET
  value: {{ include "apparate.fullname" . }}
# Not a value of its own: that would roll every pod at each upgrade, also at one that only changes a password.
- name: APPARATE_REVISION
  valueFrom:
    configMapKeyRef:
      name: {{ include "apparate.fullname" . }}
      key: revision
- name: APPARATE_SECRETS
  value: {{ include "apparate.pullSecretNames" . | fromJsonArray | join "," | quote }}
- name: APPARATE_FOLLOW_NAMESPACES
  value: {{ join "," .Values.followNamespaces | quote }}
- name: APPARATE_MAX_UNAVAILABLE
  value: {{ .Values.maxUnavailable | int | quote }}
{{- range $name, $field := dict "NODE_NAME" "spec.nodeName" "POD_NAME" "metadata.name" "POD_NAMESPACE" "metadata.namespace" "POD_UID" "metadata.uid" }}
- name: {{ $name }}
  valueFrom:
    fieldRef:
      fieldPath: {{ $field }}
{{- end }}
{{- end -}}

{{/* Policies ended with Kubernetes 1.25; a release that asks for one goes on without it there. */}}
{{- define "apparate.hasPodSecurityPolicy" -}}
{{- if and .Values.podSecurityPolicy (semverCompare "<1.25-0" .Capabilities.KubeVersion.Version) -}}
true
{{- end -}}
{{- end -}}
