{{- define "common.fullname" -}}
{{- printf "%s-%s" .Release.Name .Chart.Name | trunc 63 | trimSuffix "-" -}}
{{- end -}}

{{- define "common.selector" -}}
app.kubernetes.io/name: {{ .Chart.Name }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{- define "common.labels" -}}
{{ include "common.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{- end -}}

{{/* A pod that runs one script and ends. Takes a list: the root, the script. */}}
{{- define "common.script" -}}
{{- $root := index . 0 -}}
restartPolicy: Never
terminationGracePeriodSeconds: 1
containers:
  - name: script
    image: {{ $root.Values.image }}
    command: ["/bin/sh", "-c", {{ index . 1 | quote }}]
{{- end -}}
