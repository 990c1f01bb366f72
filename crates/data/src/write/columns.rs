//! Documents as Parquet.

use std::io;
use std::sync::Arc;

use parquet::basic::{Compression, ConvertedType, LogicalType, Repetition, Type as Physical, ZstdLevel};
use parquet::data_type::{ByteArray, ByteArrayType};
use parquet::errors::ParquetError;
use parquet::file::properties::WriterProperties;
use parquet::file::writer::SerializedFileWriter;
use parquet::schema::types::Type;

use super::Pending;
use crate::document::{Document, Fields};

/// The column of all fields but id, source and text, as JSON.
pub(crate) const META: &str = "meta";
/// Text after which a row group is written: so much is held in memory.
const GROUP_BYTES: usize = 16 << 20;

/// Collects rows and writes them in groups.
pub(crate) struct Columns {
    file: SerializedFileWriter<Pending>,
    /// id, source, text, meta
    columns: [Vec<ByteArray>; 4],
    bytes: usize,
}

impl Columns {
    pub(crate) fn new(file: Pending, fields: &Fields) -> io::Result<Columns> {
        let schema = schema(fields).map_err(failed)?;
        let properties = WriterProperties::builder()
            .set_compression(Compression::ZSTD(ZstdLevel::try_new(super::ZSTD).map_err(failed)?))
            // Texts are all different, and the least and largest of them are of no use to anyone.
            .set_dictionary_enabled(false)
            .set_statistics_enabled(parquet::file::properties::EnabledStatistics::None)
            .build();
        let file = SerializedFileWriter::new(file, schema, Arc::new(properties)).map_err(failed)?;
        Ok(Columns { file, columns: Default::default(), bytes: 0 })
    }

    pub(crate) fn push(&mut self, document: &Document) -> io::Result<()> {
        let meta = serde_json::to_string(&document.meta)?;
        let row = [&document.id, &document.source, &document.text, &meta];
        for (column, value) in self.columns.iter_mut().zip(row) {
            self.bytes += value.len();
            column.push(ByteArray::from(value.as_str()));
        }
        if self.bytes >= GROUP_BYTES { self.write_group() } else { Ok(()) }
    }

    fn write_group(&mut self) -> io::Result<()> {
        let mut group = self.file.next_row_group().map_err(failed)?;
        for values in &mut self.columns {
            let column = group.next_column().map_err(failed)?;
            let mut column = column.ok_or_else(|| io::Error::other("a column is missing"))?;
            column.typed::<ByteArrayType>().write_batch(values, None, None).map_err(failed)?;
            column.close().map_err(failed)?;
            values.clear();
        }
        group.close().map_err(failed)?;
        self.bytes = 0;
        Ok(())
    }

    pub(crate) fn finish(mut self) -> io::Result<Pending> {
        if !self.columns[0].is_empty() {
            self.write_group()?;
        }
        self.file.into_inner().map_err(failed)
    }
}

fn schema(fields: &Fields) -> Result<Arc<Type>, ParquetError> {
    let column = |name: &str, converted: ConvertedType, logical: LogicalType| {
        Type::primitive_type_builder(name, Physical::BYTE_ARRAY)
            .with_repetition(Repetition::REQUIRED)
            .with_converted_type(converted)
            .with_logical_type(Some(logical))
            .build()
            .map(Arc::new)
    };
    let text = |name: &str| column(name, ConvertedType::UTF8, LogicalType::String);
    let columns = vec![
        text(&fields.id)?,
        text(&fields.source)?,
        text(&fields.text)?,
        column(META, ConvertedType::JSON, LogicalType::Json)?,
    ];
    Ok(Arc::new(Type::group_type_builder("document").with_fields(columns).build()?))
}

/// What the disk said, where that is the reason.
fn failed(error: ParquetError) -> io::Error {
    match error {
        ParquetError::External(source) => match source.downcast::<io::Error>() {
            Ok(error) => *error,
            Err(other) => io::Error::other(other.to_string()),
        },
        other => io::Error::other(other.to_string()),
    }
}
